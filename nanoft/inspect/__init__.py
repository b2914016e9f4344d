"""What a model looks at and does: explanations, summaries, histograms, mistakes."""
