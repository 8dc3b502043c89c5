{{/* The settings file: the values', and where the chart has mounted what they need. */}}
{{- define "gateway.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- if .Values.tenantsSecret -}}
{{- $settings = mustMergeOverwrite $settings (dict "tenants" (dict "path" "/etc/headrace/tenants")) -}}
{{- else if not (dig "tenants" "path" (dig "tenants" "anonymous" false $settings) $settings) -}}
{{- fail "who may ask? Name a Secret in tenantsSecret (`headrace keys create` makes keys), or let everybody in: settings.tenants.anonymous" -}}
{{- end -}}
{{- if .Values.tlsSecret -}}
{{- $tls := dict "certificate" "/etc/headrace/tls/tls.crt" "key" "/etc/headrace/tls/tls.key" -}}
{{- $settings = mustMergeOverwrite $settings (dict "accept" (dict "tls" $tls)) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* Of settings.fleet.kubernetes: the namespaces that are watched, by commas; empty if none are. */}}
{{- define "gateway.namespaces" -}}
{{- $kubernetes := dig "fleet" "kubernetes" (dict) .Values.settings -}}
{{- if $kubernetes.enabled -}}
{{- $kubernetes.namespaces | default (list .Release.Namespace) | join "," -}}
{{- end -}}
{{- end -}}

{{/* KEDA's gRPC port; empty if it is off. */}}
{{- define "gateway.scalerPort" -}}
{{- with dig "scale" "keda" "port" nil .Values.settings -}}{{ int . }}{{- end -}}
{{- end -}}

{{- define "gateway.scheme" -}}
{{- ternary "HTTPS" "HTTP" (or .Values.tlsSecret (dig "accept" "tls" "certificate" "" .Values.settings) | empty | not) -}}
{{- end -}}
