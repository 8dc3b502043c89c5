"""Asked: how many replicas does each model need now?

Whoever scales reads it: KEDA's external scaler over gRPC is `keda`.
"""
