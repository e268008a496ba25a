"""One paper a module or folder: networks, losses and published settings."""
