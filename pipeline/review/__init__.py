"""Review: a person looks at two masks of an image and says which is better."""
