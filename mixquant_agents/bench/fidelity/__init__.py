"""How far each policy moves a model's answers, by teacher forcing: ``measure``, on the built-in ``prompts``."""
