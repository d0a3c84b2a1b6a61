"""Kills at random moments: nothing lost, nothing twice."""
