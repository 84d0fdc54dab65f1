"""What a model's own activations tell about rounding it: seen once, on text that ships with the package, and cached.

``contexts`` (the text: agent prompts, two sets that share nothing), ``network`` (a plain transformers model and its
Linear layers, grouped as vLLM runs them), ``collect`` (largest magnitudes and second moments of every layer's inputs),
``gptq`` (rounding by them), ``store`` (the folder beside the model's cache).
"""
