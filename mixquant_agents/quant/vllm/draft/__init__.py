"""The twin as drafter of its own exact model, in vLLM's speculative decoding (runner V2).

``settings`` turns the policy into vLLM's configuration, ``schedule`` decides step by step how many tokens are drafted,
``speculator`` drafts them, ``hooks`` puts the three in their places.
"""
