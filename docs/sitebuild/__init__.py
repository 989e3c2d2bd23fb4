"""The documentation site: notebooks, figures and signatures become pages for Sphinx, offline."""
