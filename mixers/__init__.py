"""mixers"""
