"""What runs outside the training process, in a bare interpreter that serves the agent's Python calls.

`appo.tools.python.client` starts it as a package of its own, so its modules import one another relatively and nothing
but the standard library besides.
"""
