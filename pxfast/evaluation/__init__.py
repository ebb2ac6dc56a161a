"""The paper's tables and figures, computed anew beside the published numbers."""
