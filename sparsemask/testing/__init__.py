"""Contract tests that ship with the package: who adds something, here or elsewhere, tests it by deriving one class.

They need pytest.
"""
