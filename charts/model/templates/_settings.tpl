{{/* The settings of `headrace replica` (docs/replicas.md). */}}
{{- define "model.settings" -}}
{{- $shape := include "model.shape" . | fromYaml -}}
{{- $p := .Values.parallelism -}}
model: {{ .Values.model.id | quote }}
engine: {{ $shape.engine }}
served_name: {{ $shape.served | quote }}
host: 0.0.0.0
port: 8000
health_port: 8001
parallelism: {tensor: {{ int $p.tensor }}, pipeline: {{ int $p.pipeline }}, data: {{ int $p.data }}, expert: {{ $p.expert }}}
{{- if ne .Values.gpu.mode "none" }}
gpus:
  count: {{ $shape.perPod }}
  {{- with .Values.gpu.product }}
  name: {{ . | quote }}
  {{- end }}
  {{- with .Values.gpu.memoryGib }}
  memory_gib: {{ . }}
  {{- end }}
{{- else }}
cpu:
  shm_mib: {{ trimSuffix "Mi" $shape.shm }}
  {{- with .Values.engine.threads }}
  threads: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.model.contextLength }}
max_model_len: {{ int . }}
{{- end }}
{{- if .Values.engine.kvEvents }}
kv_events: {port: {{ $shape.eventsPort }}, replay_port: {{ $shape.replayPort }}}
{{- end }}
supervision: {start_s: {{ int .Values.startup.seconds }}}
{{- with .Values.spiffe }}
{{- if .trustDomain }}
spiffe: {socket: {{ .socket | quote }}, trust_domain: {{ .trustDomain | quote }}}
{{- end }}
{{- end }}
{{- with .Values.engine.settings }}
{{ toYaml . }}
{{- end }}
drain_s: {{ $shape.drainSeconds }}
log: json
{{- $arguments := include "model.arguments" . | fromJson }}
{{- if or $arguments .Values.engine.extraArgs }}
args:
  {{- range $name, $value := $arguments }}
  - {{ include "model.argument" (list $name $value) | quote }}
  {{- end }}
  {{- range .Values.engine.extraArgs }}
  - {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}
