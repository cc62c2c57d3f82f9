"""The neighbouring papers' methods, one file each: planners, selectors, objectives. What each really does:
docs/methods.md.
"""
