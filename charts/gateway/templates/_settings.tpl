{{/* The settings file: the values', and where the chart has mounted what they need. */}}
{{- define "gateway.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- if .Values.tenantsSecret -}}
{{- $settings = mustMergeOverwrite $settings (dict "tenants" (dict "path" "/etc/headrace/tenants")) -}}
{{- else if not (dig "tenants" "path" (dig "tenants" "anonymous" false $settings) $settings) -}}
{{- fail "who may ask? Name a Secret in tenantsSecret (`headrace keys create` makes keys), or let everybody in: settings.tenants.anonymous" -}}
{{- end -}}
{{- range $name := list "store" "files" -}}
{{- if regexMatch "://[^/@]*:[^@]*@|[?&][a-z]*password=" (dig "batch" $name "" $settings | default "") -}}
{{- fail (printf "settings.batch.%s: a password is no setting, for all may read a ConfigMap: put it into a Secret, and name that in env" $name) -}}
{{- end -}}
{{- end -}}
{{- if .Values.tlsSecret -}}
{{- $tls := dict "certificate" "/etc/headrace/tls/tls.crt" "key" "/etc/headrace/tls/tls.key" -}}
{{- $settings = mustMergeOverwrite $settings (dict "accept" (dict "tls" $tls)) -}}
{{- end -}}
{{- with .Values.scalerTls.secret -}}
{{- $tls := dict "certificate" "/etc/headrace/scaler/tls.crt" "key" "/etc/headrace/scaler/tls.key" -}}
{{- if $.Values.scalerTls.clientCa -}}
{{- $_ := set $tls "client_ca" "/etc/headrace/scaler/ca.crt" -}}
{{- end -}}
{{- $settings = mustMergeOverwrite $settings (dict "scale" (dict "keda" (dict "tls" $tls))) -}}
{{- end -}}
{{- with include "gateway.peers" . | fromYaml -}}
{{- $settings = mustMergeOverwrite $settings (dict "peers" .) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* More than one gateway at a time: "true". */}}
{{- define "gateway.areSeveral" -}}
{{- if gt (ternary .Values.autoscaling.max .Values.replicas .Values.autoscaling.enabled | int) 1 -}}true{{- end -}}
{{- end -}}

{{/* What the settings say of peers, as far as the chart knows it. */}}
{{- define "gateway.peers" -}}
{{- with dig "peers" "workers" nil .Values.settings -}}
{{- fail "settings.peers.workers: say `workers`, from which cores and ports follow" -}}
{{- end -}}
{{- if gt (int .Values.workers) 1 }}
workers: {{ int .Values.workers }}
{{- end }}
{{- if include "gateway.peersPort" . }}
dns: {{ include "headrace.name" . }}-peers.{{ .Release.Namespace }}.svc
port: {{ include "gateway.peersPort" . }}
{{- if .Values.peers.secret }}
secret: /etc/headrace/peers/secret
{{- end }}
{{- end }}
{{- end -}}

{{/* The first worker's; empty where there are no others, or where the settings say who they are. */}}
{{- define "gateway.peersPort" -}}
{{- $said := dig "peers" (dict) .Values.settings -}}
{{- if and (include "gateway.areSeveral" .) (not (or $said.dns $said.addresses)) -}}
{{- int .Values.peers.port -}}
{{- end -}}
{{- end -}}

{{/* The ports of peers in a rule of a NetworkPolicy. */}}
{{- define "gateway.peersPorts" -}}
{{- $port := include "gateway.peersPort" . | int -}}
- {port: {{ $port }}, endPort: {{ add $port .Values.workers -1 }}, protocol: UDP}
{{- end -}}

{{- define "gateway.cpu" -}}
{{- .Values.resources.cpu | default (add .Values.workers 1 | toString) -}}
{{- end -}}

{{- define "gateway.memory" -}}
{{- .Values.resources.memory | default (printf "%dGi" (mul 2 (add .Values.workers 1))) -}}
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

{{/* Where SPIFFE's CSI driver puts the socket that settings.trust.spiffe names; empty: it is off. */}}
{{- define "gateway.workloadApi" -}}
{{- with dig "trust" "spiffe" "socket" "" .Values.settings -}}
{{- trimPrefix "unix:" . | dir -}}
{{- end -}}
{{- end -}}
