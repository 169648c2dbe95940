"""Recipes: YAML text to a checked `Recipe`. The only owner of yaml and pydantic."""
