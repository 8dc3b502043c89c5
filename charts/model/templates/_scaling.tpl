{{/* When to scale: all that KEDA is told but for whom, and between which bounds. */}}
{{- define "model.scalingRules" -}}
{{- $shape := include "model.shape" . | fromYaml -}}
{{- $s := .Values.scaling -}}
pollingInterval: {{ int $s.pollingSeconds }}
cooldownPeriod: {{ int $s.cooldownSeconds }}
initialCooldownPeriod: {{ int $s.initialCooldownSeconds }}
fallback: {failureThreshold: 3, replicas: {{ int $s.fallbackReplicas }}, behavior: currentReplicasIfHigher}
advanced:
  horizontalPodAutoscalerConfig:
    behavior:
      scaleUp:
        stabilizationWindowSeconds: 0
        policies: [{type: Pods, value: {{ int $s.upPerMinute }}, periodSeconds: 60}]
      scaleDown:
        stabilizationWindowSeconds: {{ int $s.downStabilizationSeconds }}
        policies: [{type: Pods, value: {{ int $s.downPerMinute }}, periodSeconds: 60}]
triggers:
  {{- /* The gateway counts data-parallel ranks; KEDA's step is a pod or group, with all of its ranks. */}}
  {{- if eq $s.trigger "external-push" }}
  - type: external-push
    {{- if and $s.tls.enabled (or $s.tls.ca.secret $s.tls.clientSecret) }}
    authenticationRef: {name: {{ include "headrace.name" . }}}
    {{- end }}
    metadata:
      {{- if $s.tls.enabled }}
      enableTLS: "true"
      {{- end }}
      scalerAddress: {{ printf "%s-scaler.%s.svc:%d" .Values.gateway.name (include "model.gatewayNamespace" .) (int .Values.gateway.scalerPort) }}
      model: {{ $shape.served | quote }}
      target: {{ .Values.parallelism.data | quote }}
  {{- else if eq $s.trigger "metrics-api" }}
  - type: metrics-api
    metadata:
      url: {{ include "model.gatewayUrl" . }}/scale/{{ $shape.served | urlquery | replace "+" "%20" | replace "%2F" "/" }}
      valueLocation: replicas_needed
      targetValue: {{ .Values.parallelism.data | quote }}
      aggregateFromKubeServiceEndpoints: "true"
      aggregationType: max
  {{- else }}
  - type: prometheus
    metadata:
      serverAddress: {{ $s.prometheus | quote }}
      query: {{ printf "model:gateway_demand_replicas:max{namespace=%q,model=%q}" (include "model.gatewayNamespace" .) $shape.served | quote }}
      threshold: {{ .Values.parallelism.data | quote }}
      ignoreNullValues: "false"
  {{- end }}
{{- end -}}
