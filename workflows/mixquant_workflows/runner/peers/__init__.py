"""The same work on this library, on ``vllm serve`` through ChatOpenAI, and on ChatLlamaCpp."""
