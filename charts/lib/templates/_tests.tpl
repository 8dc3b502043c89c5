{{/* By these the pods of `helm test` are found: they are none of the release's own. */}}
{{- define "headrace.testSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* The spec of such a pod, up to its container's command. Takes the root, and an image. */}}
{{- define "headrace.testPod" -}}
restartPolicy: Never
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "headrace.podSecurity" (int .root.Values.runAsUser) | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
containers:
  - name: test
    image: {{ include "headrace.image" .image }}
    imagePullPolicy: {{ .image.pullPolicy }}
    resources:
      requests: {cpu: 100m, memory: 256Mi}
      limits: {memory: 256Mi}
    securityContext:
      {{- include "headrace.containerSecurity" .root | nindent 6 }}
{{- end -}}
