"""Conversations in the form that a model's chat template takes. Pure functions; no vLLM, no tokenizer.

=================  ==================================================================================================
module             what it decides
=================  ==================================================================================================
``messages``       what a conversation is: roles, text, calls; half characters are mended
``call_ids``       ids of calls that a family accepts, the same on call and result
``prompted``       tools in words, for templates that know none
``shape``          the adaptations a template may need, cheapest first, and the messages after them
``probe``          whether a template keeps what it is given: the same conversation, filled with words of our own
``variables``      which variables of a template a caller may set
=================  ==================================================================================================

``engine.vllm.render.Renderer`` puts them together.
"""
