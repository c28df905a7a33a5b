"""The defaults we ship and the settings that a deployment may change. A leaf: imports nothing of ours."""
