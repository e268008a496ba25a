"""Joints, pose maps and limb warps."""
