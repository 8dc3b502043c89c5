{{/* Kueue knows by these which queue the workload's pods wait in. */}}
{{- define "model.queueLabels" -}}
{{- with .Values.kueue.queue -}}
kueue.x-k8s.io/queue-name: {{ . | quote }}
{{- with $.Values.kueue.priorityClass }}
kueue.x-k8s.io/priority-class: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "model.onVolcano" -}}
{{- include "headrace.isOn" (dict "root" . "switch" .Values.volcano.enabled "kind" "scheduling.volcano.sh/v1beta1/PodGroup") -}}
{{- end -}}

{{/* What schedulers read on a pod: Kueue, that a group's pods go to one domain; Volcano, the gang or the queue. */}}
{{- define "model.schedulingAnnotations" -}}
{{- $shape := include "model.shape" . | fromYaml -}}
{{- $k := .Values.kueue -}}
{{- if and $k.queue $k.topology (eq $shape.group "true") -}}
kueue.x-k8s.io/podset-group-name: {{ include "headrace.name" . }}
kueue.x-k8s.io/podset-required-topology: {{ $k.topology | quote }}
{{ end -}}
{{- if include "model.onVolcano" . -}}
{{- if eq $shape.group "true" -}}
scheduling.k8s.io/group-name: {{ include "headrace.name" . }}
{{- else -}}
scheduling.volcano.sh/queue-name: {{ .Values.volcano.queue | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Of the pod's spec: who schedules it, and the claim of its GPUs. */}}
{{- define "model.scheduling" -}}
{{- if include "model.onVolcano" . -}}
schedulerName: volcano
{{ end -}}
{{- if eq .Values.gpu.mode "dra" -}}
resourceClaims:
  - {name: gpus, resourceClaimTemplateName: {{ include "headrace.name" . }}}
{{- end -}}
{{- end -}}

{{/* By these the release's pods are found; KServe gives its pods names of its own, and keeps our mark. */}}
{{- define "model.selector" -}}
{{- $shape := include "model.shape" . | fromYaml -}}
{{- if has $shape.workload (list "deployment" "leaderworkerset") -}}
{{- include "headrace.selector" . -}}
{{- else -}}
{{- include "model.mark" . -}}
{{- end -}}
{{- end -}}
