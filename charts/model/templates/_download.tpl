{{/* The spec of the Job that fetches the model into the claim. */}}
{{- define "model.downloadSpec" -}}
backoffLimit: 6
template:
  metadata:
    labels:
      {{- include "model.downloadSelector" . | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    automountServiceAccountToken: false
    enableServiceLinks: false
    securityContext:
      {{- include "headrace.podSecurity" (int .Values.runAsUser) | nindent 6 }}
    {{- with .Values.imagePullSecrets }}
    imagePullSecrets:
      {{- range . }}
      - name: {{ . | quote }}
      {{- end }}
    {{- end }}
    {{- with .Values.tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: download
        image: {{ include "headrace.image" .Values.engine.image }}
        imagePullPolicy: {{ .Values.engine.image.pullPolicy }}
        command: [python3, -c, "import sys, huggingface_hub; huggingface_hub.snapshot_download(sys.argv[1])", {{ .Values.model.id | quote }}]
        env:
          - {name: HOME, value: /tmp}
          - {name: HF_HOME, value: /models}
          {{- if .Values.model.tokenSecret.name }}
          {{- include "model.token" . | nindent 10 }}
          {{- end }}
        resources:
          requests: {cpu: "1", memory: 2Gi}
          limits: {memory: 2Gi}
        securityContext:
          {{- include "headrace.containerSecurity" . | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          - {name: models, mountPath: /models}
    volumes:
      - name: tmp
        emptyDir: {}
      - name: models
        {{- include "model.cache" . | nindent 8 }}
{{- end -}}

{{/* Of its pod: none of the replicas. */}}
{{- define "model.downloadSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-download
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}
