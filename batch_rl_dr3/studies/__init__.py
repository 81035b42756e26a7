"""The paper's studies: what is trained for each, drawn and measured."""
