"""The node room: the folder in which the edge and the predictors of one machine meet, and the only place where they do.

in      versions that the edge has verified and installed · votes of the processes that answer predictions
out     `current`, the version that serves · `next`, the one to gate · reports of living followers, bounded and checked
never   opens a network connection · imports torch · believes a follower more than its vote
crash   a link is the old one or the new one; a version's folder is whole as soon as its name exists
read    NODE_FOLDER.md → links.py (both sides) → followers.py (votes and reports)
"""
