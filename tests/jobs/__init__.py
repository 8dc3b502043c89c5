"""Work sent through a gateway by the systems that run it: Spark, Kubeflow Pipelines."""
