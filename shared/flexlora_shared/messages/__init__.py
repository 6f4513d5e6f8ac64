"""The JSON messages of the protocol, one file for each subject. All are strict: no coercion, no NaN, no unknown field.

Who reads an answer ignores unknown fields, by `model_validate_json(..., extra="ignore")`: the other side may be newer.
"""
