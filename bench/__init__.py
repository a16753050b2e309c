"""Figures about servicectl, measured side by side with what they are compared to, in one run.

A benchmark is a module here with a docstring, `run(quick) -> {figure: value}`, and `LIMITS`,
{figure: the most it may be}, or `MINIMUM`, {figure: the least}. `add_arguments(parser)` adds options, handed to `run` by name.
"""
