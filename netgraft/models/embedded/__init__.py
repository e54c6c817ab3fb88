"""Small pretrained nets that travel with the package."""
