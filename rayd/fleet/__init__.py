"""The stages of a Run on Ray, one file a verb; decisions after a loss are in policy.py. No other room imports Ray."""
