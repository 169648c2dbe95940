"""The Ray executor. The only owner of ray."""
