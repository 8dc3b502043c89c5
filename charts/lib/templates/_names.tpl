{{/* The name of the release's objects: the release's. Helm lets it have dots and be a number; a Service may not. */}}
{{- define "headrace.name" -}}
{{- $name := .Release.Name -}}
{{- if or (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) (kindIs "string" (fromYaml (printf "it: %s" $name)).it | not) -}}
{{- fail (printf "the release's name, %s, is none of a Service's: letters, numbers and dashes after a letter, and no word that YAML reads otherwise" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* By these the release's pods are found; they never change. */}}
{{- define "headrace.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* On every object. */}}
{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/part-of: headrace
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* An image by its digest if there is one, else by its tag. */}}
{{- define "headrace.image" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}
