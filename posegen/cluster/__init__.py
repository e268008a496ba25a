"""Ray's cluster: joining it, its resources, spot nodes, and the checks of `posegen doctor`."""
