"""How each program that quantizes models names and packs its tensors: one module a dialect.

A dialect has `declare(fields, file)`, which reads its part of a config, where it has one, and
`recognise(module)`, which tells what a module's tensors are; both from headers alone.
"""
