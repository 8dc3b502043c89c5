"""Asked: how many replicas does each model need now?

Every request is counted from its admission to its end, what it costs is predicted in
replica-seconds, and `staffing` turns that into one absolute number. Whoever scales reads it: at
/scale/{model}, in the metrics, through KEDA's external scaler over gRPC (`keda`), or through
`gateway.demand.DemandSource`.
"""
