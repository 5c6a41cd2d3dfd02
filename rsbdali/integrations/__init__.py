"""Plugs for trainers that people have: timm's scripts, Lightning, Accelerate."""
