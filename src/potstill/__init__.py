"""Make large language models small: text and a teacher in; a distilled, quantized student and a report out."""

__version__ = "0.1.0"
