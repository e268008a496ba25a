"""DeepFashion In-shop."""
