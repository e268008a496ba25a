"""The checks of `posegen doctor`: facts collected on every node, and pure functions that judge them."""
