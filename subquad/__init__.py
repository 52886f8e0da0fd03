"""Efficient sequence mixers: ops, modules and the benchmarks that judge them."""
