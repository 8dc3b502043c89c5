{{/*
What follows from the shape, in one place, so that its parts cannot disagree: a YAML object of
  devices   in a replica        perPod   of them in each pod      pods    in a replica
  group     "true": the pods are a LeaderWorkerSet's              resource   what is asked of the node, unless it is claimed
  workload  the kind that holds them: deployment, leaderworkerset, inferenceservice, llminferenceservice
  engine    as the replica's settings say it                      served  the model's name for clients
  shm, memory, graceSeconds, drainSeconds, eventsPort, replayPort, lastEventsPort
Fails where the values contradict each other.
*/}}
{{- define "model.shape" -}}
{{- $p := .Values.parallelism -}}
{{- $gpu := .Values.gpu -}}
{{- $devices := mul $p.tensor $p.pipeline $p.data | int -}}
{{- $perPod := ternary $devices ($gpu.count | default $devices | int) (eq $gpu.mode "none") -}}
{{- if mod $devices $perPod -}}
{{- fail (printf "gpu.count: tensor %v x pipeline %v x data %v are %d GPUs, which %d to a pod do not divide" $p.tensor $p.pipeline $p.data $devices $perPod) -}}
{{- end -}}
{{- $pods := div $devices $perPod | int -}}
{{- $kind := ternary "leaderworkerset" "deployment" (gt $pods 1) -}}
{{- with .Values.workload.kind -}}
{{- if and (has . (list "inferenceservice" "llminferenceservice")) (eq $pods 1) -}}
{{- $kind = . -}}
{{- else if ne . $kind -}}
{{- fail (printf "workload.kind: a replica of %d pods (%d GPUs, %d to a pod) is a %s, not a %s" $pods $devices $perPod $kind .) -}}
{{- end -}}
{{- end -}}
{{- $resource := "" -}}
{{- if eq $gpu.mode "mig" -}}
{{- $resource = printf "nvidia.com/mig-%s" ($gpu.migProfile | replace "+" ".") -}}
{{- with $gpu.resourceName -}}
{{- if ne (replace "+" "." .) $resource -}}
{{- fail (printf "gpu.resourceName: %s is not what slices of profile %s are called: %s" . $gpu.migProfile $resource) -}}
{{- end -}}
{{- end -}}
{{- else if eq $gpu.mode "timeSlicing" -}}
{{- $resource = "nvidia.com/gpu.shared" -}}
{{- with get .Values.engine.args (include "model.memoryArgument" .) -}}
{{- if gt (mulf . $gpu.sharedBy) 1.0 -}}
{{- fail (printf "engine.args: %s of the memory for each of %v is more than there is" . $gpu.sharedBy) -}}
{{- end -}}
{{- end -}}
{{- else if eq $gpu.mode "devicePlugin" -}}
{{- $resource = $gpu.resourceName | default "nvidia.com/gpu" -}}
{{- end -}}
{{- $derived := list "model" "served-model-name" "tensor-parallel-size" "pipeline-parallel-size" "data-parallel-size" "enable-expert-parallel" "max-model-len" "host" "port" "kv-events-config" "-tp" "-pp" "-dp" "-ep" -}}
{{- if eq .Values.engine.kind "sglang" -}}
{{- $derived = concat $derived (list "model-path" "tp" "tp-size" "pp" "pp-size" "dp" "dp-size" "ep" "ep-size" "context-length") -}}
{{- end -}}
{{- $said := concat (keys .Values.engine.args | sortAlpha) .Values.engine.extraArgs -}}
{{- range $said -}}
{{- $name := . | trimPrefix "--" | splitList "=" | first | replace "_" "-" -}}
{{- if has $name $derived -}}
{{- fail (printf "engine: %s follows from model, parallelism and kvEvents, and is not for args or extraArgs" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.scaling.enabled (gt (int .Values.scaling.min) (int .Values.scaling.max)) -}}
{{- fail (printf "scaling.min: %v is more than scaling.max, %v" .Values.scaling.min .Values.scaling.max) -}}
{{- end -}}
{{- $shm := mul .Values.shm.mibPerDevice $perPod | int -}}
{{- $engine := .Values.engine.kind -}}
{{- if and (gt $pods 1) (gt (len .Release.Name) 48) -}}
{{- fail (printf "the release's name: %d letters are too many for the pods of a LeaderWorkerSet, 48 are not" (len .Release.Name)) -}}
{{- end -}}
devices: {{ $devices }}
perPod: {{ $perPod }}
pods: {{ $pods }}
group: {{ gt $pods 1 | quote }}
workload: {{ $kind }}
resource: {{ $resource | quote }}
engine: {{ ternary "vllm-cpu" $engine (and (eq $gpu.mode "none") (eq $engine "vllm")) }}
served: {{ .Values.model.servedName | default .Values.model.id | quote }}
shm: {{ $shm }}Mi
memory: {{ add (mul .Values.resources.memoryGib 1024) $shm }}Mi
drainSeconds: {{ int .Values.drain.seconds }}
graceSeconds: {{ add (mul 2 .Values.drain.seconds) 30 }}
eventsPort: 5557
replayPort: {{ add 5557 $p.data }}
lastEventsPort: {{ add 5556 (mul 2 $p.data) }}
{{- end -}}

{{/* How the engine is told its part of the GPU's memory. */}}
{{- define "model.memoryArgument" -}}
{{- ternary "mem-fraction-static" "gpu-memory-utilization" (eq .Values.engine.kind "sglang") -}}
{{- end -}}

{{/* The engine's arguments by name: what is said, and what follows from sharing a GPU. */}}
{{- define "model.arguments" -}}
{{- $arguments := deepCopy .Values.engine.args -}}
{{- if eq .Values.gpu.mode "timeSlicing" -}}
{{- $part := printf "%.2f" (divf 0.9 .Values.gpu.sharedBy) -}}
{{- $arguments = merge $arguments (dict (include "model.memoryArgument" .) $part) -}}
{{- end -}}
{{- toJson $arguments -}}
{{- end -}}

{{/* One of them, by (name, value): a switch is said or denied, and a large number is written out. */}}
{{- define "model.argument" -}}
{{- $name := index . 0 -}}
{{- $value := index . 1 -}}
{{- if kindIs "bool" $value -}}
{{- ternary "--" "--no-" $value }}{{ $name -}}
{{- else if and (kindIs "float64" $value) (eq (floor $value) $value) -}}
--{{ $name }}={{ int64 $value -}}
{{- else -}}
--{{ $name }}={{ $value -}}
{{- end -}}
{{- end -}}

{{/* Several replicas at all times: one may be taken away. */}}
{{- define "model.isSeveral" -}}
{{- $least := ternary .Values.scaling.min .Values.workload.replicas .Values.scaling.enabled -}}
{{- if gt (int $least) 1 -}}true{{- end -}}
{{- end -}}

{{/* How the gateway knows what is this model's: on the workload, its pods and the Service. */}}
{{- define "model.mark" -}}
headrace.io/model: {{ include "headrace.name" . }}
{{- end -}}

{{- define "model.saysOfItself" -}}
{{- $shape := include "model.shape" . | fromYaml -}}
headrace.io/model: {{ $shape.served | quote }}
headrace.io/port: "8000"
{{- if .Values.spiffe.trustDomain }}
headrace.io/scheme: https
{{- end }}
{{- if gt (int .Values.parallelism.data) 1 }}
headrace.io/data-parallel-size: {{ .Values.parallelism.data | quote }}
{{- end }}
{{- if .Values.engine.kvEvents }}
headrace.io/kv-events-port: {{ $shape.eventsPort | quote }}
headrace.io/kv-replay-port: {{ $shape.replayPort | quote }}
{{- end }}
{{- end -}}

{{/* Where the gateway takes requests. */}}
{{- define "model.gatewayUrl" -}}
{{- $g := .Values.gateway -}}
{{ $g.scheme }}://{{ $g.name }}.{{ include "model.gatewayNamespace" . }}.svc:{{ int $g.port }}
{{- end -}}

{{- define "model.gatewayNamespace" -}}
{{- .Values.gateway.namespace | default .Release.Namespace -}}
{{- end -}}
