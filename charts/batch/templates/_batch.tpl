{{/* What is asked for makes sense together; the schema has seen to each value. */}}
{{- define "batch.checked" -}}
{{- $names := list -}}
{{- range .Values.files -}}
{{- if has .name $names -}}{{- fail (printf "files: two are called %s" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}

{{- define "batch.gateway" -}}
{{- $namespace := .Values.gateway.namespace | default .Release.Namespace -}}
{{ .Values.gateway.scheme }}://{{ .Values.gateway.release }}.{{ $namespace }}.svc:{{ int .Values.gateway.port }}
{{- end -}}

{{/*
The release's name and a digest of all that an object which cannot be changed is made of. Of a
JobSet less is left for it: its pods are called after it, a job of up to 30 letters, two indices and
five letters of their own, and that is a label.
*/}}
{{- define "batch.onceName" -}}
{{- $root := index . 0 -}}
{{- $made := toJson (list $root.Release.Name $root.Values $root.Chart.Version (rest .)) -}}
{{- $length := ternary 12 40 (eq $root.Values.kind "JobSet") -}}
{{- printf "%s-%s" (include "headrace.name" $root | trunc $length | trimSuffix "-") ($made | sha256sum | trunc 8) -}}
{{- end -}}

{{- define "batch.kueueLabels" -}}
{{- with .Values.kueue.queue }}
kueue.x-k8s.io/queue-name: {{ . | quote }}
{{- end }}
{{- with .Values.kueue.priorityClass }}
kueue.x-k8s.io/priority-class: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* `headrace batch run`, by (root, input, output, name). */}}
{{- define "batch.command" -}}
{{- $root := index . 0 -}}
command: [headrace, batch, run]
args:
  - {{ index . 1 | quote }}
  - {{ printf "--output=%s" (index . 2) | quote }}
  - {{ printf "--name=%s" (index . 3) | quote }}
  - --completion-window={{ $root.Values.completionWindow }}
  - --poll={{ $root.Values.pollSeconds }}
  {{- include "batch.access" $root | nindent 2 }}
{{- end -}}

{{- define "batch.access" -}}
- --endpoint={{ include "batch.gateway" . }}
{{- with .Values.apiKeySecret.name }}
- --api-key-file=/etc/headrace/key/{{ $.Values.apiKeySecret.key }}
{{- end }}
{{- end -}}

{{/* What every container has, beside its name and command. */}}
{{- define "batch.container" -}}
image: {{ include "headrace.image" .Values.image }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.storageSecret }}
envFrom:
  - secretRef: {name: {{ . | quote }}}
{{- end }}
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "headrace.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.apiKeySecret.name }}
  - {name: key, mountPath: /etc/headrace/key, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "batch.resources" -}}
resources:
  requests:
    cpu: {{ .Values.resources.cpu | quote }}
    memory: {{ .Values.resources.memory | quote }}
  limits:
    memory: {{ .Values.resources.memory | quote }}
{{- end -}}

{{- define "batch.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.scratch | quote }}}
{{- with .Values.apiKeySecret.name }}
- name: key
  secret: {secretName: {{ . | quote }}}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every pod has, but for its containers and volumes. */}}
{{- define "batch.pod" -}}
enableServiceLinks: false
securityContext:
  {{- include "headrace.podSecurity" (int .Values.runAsUser) | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The spec of a Job that has one file answered, by (root, file). */}}
{{- define "batch.jobSpec" -}}
{{- $root := index . 0 -}}
{{- $file := index . 1 -}}
backoffLimit: {{ int $root.Values.backoffLimit }}
{{- with $root.Values.deadlineSeconds }}
activeDeadlineSeconds: {{ int . }}
{{- end }}
podFailurePolicy:
  rules:
    {{- /* 1: lines failed, and would again; 2: the input or the key is wrong */}}
    - action: FailJob
      onExitCodes: {containerName: batch, operator: In, values: [1, 2]}
    {{- /* evicted or preempted: the batch goes on meanwhile */}}
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
template:
  metadata:
    labels:
      {{- include "headrace.labels" $root | nindent 6 }}
  spec:
    restartPolicy: Never
    automountServiceAccountToken: false
    {{- include "batch.pod" $root | nindent 4 }}
    containers:
      - name: batch
        {{- $name := list $root.Release.Name $file.name $root.Values.run | compact | join "/" }}
        {{- include "batch.command" (list $root $file.input $file.output $name) | nindent 8 }}
        {{- include "batch.container" $root | nindent 8 }}
        {{- include "batch.resources" $root | nindent 8 }}
    volumes:
      {{- include "batch.volumes" $root | nindent 6 }}
{{- end -}}
