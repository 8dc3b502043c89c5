{{/*
A pod of a replica. Takes the root, and whether it is one that only helps: of those nobody knows
when the last request is done, so they stay for as long as their leader may.
*/}}
{{- define "model.pod" -}}
{{- $ := .root -}}
{{- $shape := include "model.shape" $ | fromYaml -}}
metadata:
  labels:
    {{- include "headrace.labels" $ | nindent 4 }}
    {{- include "model.mark" $ | nindent 4 }}
  annotations:
    {{- include "model.saysOfItself" $ | nindent 4 }}
    {{- with include "model.schedulingAnnotations" $ | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    checksum/settings: {{ include "model.settings" $ | sha256sum }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  dnsConfig: {options: [{name: ndots, value: "2"}]}
  terminationGracePeriodSeconds: {{ $shape.graceSeconds }}
  securityContext:
    {{- include "headrace.podSecurity" (int $.Values.runAsUser) | nindent 4 }}
  {{- with $.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- with $.Values.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with $.Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with include "model.scheduling" $ | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if not .helps }}
  {{- with $.Values.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - {{ toYaml . | nindent 6 | trim }}
      labelSelector:
        matchLabels:
          {{- include "model.selector" $ | nindent 10 }}
          {{- if eq $shape.group "true" }}
          leaderworkerset.sigs.k8s.io/worker-index: "0"
          {{- end }}
    {{- end }}
  {{- end }}
  {{- end }}
  containers:
    - name: engine
      image: {{ include "headrace.image" $.Values.engine.image }}
      imagePullPolicy: {{ $.Values.engine.image.pullPolicy }}
      command: [headrace, replica, --settings, /etc/headrace/replica.yaml]
      env:
        {{- include "model.environment" $ | nindent 8 }}
      ports:
        - {name: http, containerPort: 8000}
        - {name: health, containerPort: 8001}
      startupProbe:
        httpGet: {path: /ready, port: health}
        periodSeconds: 2
        failureThreshold: {{ div (add $.Values.startup.seconds 1) 2 }}
      readinessProbe:
        httpGet: {path: /ready, port: health}
        periodSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /live, port: health}
        periodSeconds: 10
        timeoutSeconds: 5
      lifecycle:
        preStop:
          exec:
            {{- if .helps }}
            command: [sleep, {{ add $shape.drainSeconds 5 | quote }}]
            {{- else }}
            command: [headrace, replica, drain, --settings, /etc/headrace/replica.yaml]
            {{- end }}
      resources:
        {{- if eq $.Values.gpu.mode "dra" }}
        claims: [{name: gpus}]
        {{- end }}
        requests:
          cpu: {{ $.Values.resources.cpu | quote }}
          memory: {{ $shape.memory }}
          {{- if $shape.resource }}
          {{ $shape.resource }}: {{ $shape.perPod }}
          {{- end }}
        limits:
          memory: {{ $shape.memory }}
          {{- if $shape.resource }}
          {{ $shape.resource }}: {{ $shape.perPod }}
          {{- end }}
      securityContext:
        {{- include "headrace.containerSecurity" $ | nindent 8 }}
      volumeMounts:
        - {name: settings, mountPath: /etc/headrace, readOnly: true}
        - {name: home, mountPath: /home/engine}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        - {name: models, mountPath: /models{{ if eq $.Values.cache.kind "image" }}, readOnly: true{{ end }}}
        {{- if $.Values.spiffe.trustDomain }}
        - {name: workload-api, mountPath: {{ trimPrefix "unix:" $.Values.spiffe.socket | dir }}, readOnly: true}
        {{- end }}
  volumes:
    {{- if $.Values.spiffe.trustDomain }}
    - name: workload-api
      csi: {driver: csi.spiffe.io, readOnly: true}
    {{- end }}
    - name: settings
      configMap: {name: {{ include "headrace.name" $ }}}
    - name: home
      emptyDir: {}
    - name: tmp
      emptyDir: {}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $shape.shm }}}
    - name: models
      {{- include "model.cache" $ | nindent 6 }}
{{- end -}}

{{/* Home holds caches of compiled code, so it is never shared between workloads. */}}
{{- define "model.environment" -}}
- {name: HOME, value: /home/engine}
- {name: USER, value: engine}
{{- if eq .Values.cache.kind "image" }}
- {name: HF_HOME, value: /home/engine/hub}
{{- else }}
- {name: HF_HOME, value: /models}
{{- end }}
{{- if not .Values.networkPolicy.hub }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- if .Values.model.tokenSecret.name }}
{{ include "model.token" . }}
{{- end }}
{{- range $name, $value := .Values.engine.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "model.token" -}}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .Values.model.tokenSecret.name | quote }}, key: {{ .Values.model.tokenSecret.key | quote }}}
{{- end -}}

{{- define "model.cache" -}}
{{- $cache := .Values.cache -}}
{{- if eq $cache.kind "pvc" -}}
persistentVolumeClaim: {claimName: {{ $cache.existingClaim | default (printf "%s-models" (include "headrace.name" .)) | quote }}}
{{- else if eq $cache.kind "image" -}}
{{- if semverCompare "<1.31-0" .Capabilities.KubeVersion.Version -}}
{{- fail "cache.kind: image volumes need Kubernetes 1.31 or later" -}}
{{- end -}}
image: {reference: {{ $cache.image | quote }}, pullPolicy: IfNotPresent}
{{- else if eq $cache.kind "hostPath" -}}
hostPath: {path: {{ $cache.path | quote }}, type: Directory}
{{- else -}}
emptyDir: {sizeLimit: {{ int $cache.sizeGib }}Gi}
{{- end -}}
{{- end -}}

{{- define "model.egressHub" -}}
- to:
    - ipBlock: {cidr: 0.0.0.0/0}
    - ipBlock: {cidr: "::/0"}
  ports:
    - {port: 443}
{{- end -}}
