"""What judging the history of a large store again costs."""
