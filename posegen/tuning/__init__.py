"""Search over loss weights with Ray Tune: trials share the stages that the search space leaves unchanged, are scored on
held-out people and may be stopped early; the best weights are then compared with the paper's on the test people.
"""
