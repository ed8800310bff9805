"""The stages of a Run, one file a verb: experts, distill, evaluate, and what they share."""
