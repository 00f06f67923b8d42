"""The embedded default: prompts, a gold scorer and a bundled model for a real RLHF run without network beyond pip."""
