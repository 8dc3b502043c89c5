{{/* The names under which a kind of GPU is asked for, as a device plugin makes them. */}}
{{- define "platform.resource" -}}
{{- $sharing := .sharing | default dict -}}
{{- if eq ($sharing.kind | default "none") "mig" -}}
nvidia.com/mig-{{ $sharing.profile | replace "+" "." }}
{{- else if eq ($sharing.kind | default "none") "timeSlicing" -}}
nvidia.com/gpu.shared
{{- else -}}
nvidia.com/gpu
{{- end -}}
{{- end -}}

{{/* GPUs of a kind, and what can be asked for: slices count one by one. */}}
{{- define "platform.gpuCount" -}}
{{- mul .perNode .nodes -}}
{{- end -}}

{{- define "platform.quota" -}}
{{- mul .perNode .nodes (dig "sharing" "perGpu" 1 .) -}}
{{- end -}}

{{/* All that can be asked for, as one object: resource -> how many. */}}
{{- define "platform.quotas" -}}
{{- $sums := dict -}}
{{- range .Values.gpus -}}
{{- $resource := include "platform.resource" . -}}
{{- $_ := set $sums $resource (add (get $sums $resource | default 0) (include "platform.quota" . | int)) -}}
{{- end -}}
{{- toYaml $sums -}}
{{- end -}}

{{- define "platform.kindLabels" -}}
{{- include "headrace.labels" .root }}
headrace.io/gpu: {{ .kind.name | quote }}
{{- end -}}

{{- define "platform.namespaces" -}}
{{- .namespaces | default (list .root.Release.Namespace) | toJson -}}
{{- end -}}
