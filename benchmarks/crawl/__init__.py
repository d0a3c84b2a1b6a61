"""How much a crawl asks of the Hub, and how much memory it takes."""
