{{/* The policies that are on, with what is said of each: name -> about, parameters, variables, validations, said. */}}
{{- define "platform.policies" -}}
{{- range $name := list "images" "privilege" "gpus" "labels" "egress" -}}
{{- $said := index $.Values.policies $name -}}
{{- if $said.enabled }}
{{ $name }}:
  {{- $.Files.Get (printf "policies/%s.yaml" $name) | nindent 2 }}
  said:
    {{- toYaml (omit $said "enabled") | nindent 4 }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a policy in CEL judges, and by what. Takes the root, and the policy. */}}
{{- define "platform.cel" -}}
{{- $policy := .policy -}}
variables:
  {{- range $name, $value := $policy.said }}
  - {name: {{ $name }}, expression: {{ toJson $value | quote }}}
  {{- end }}
  {{- if hasPrefix "pods" $policy.about }}
  {{- .root.Files.Get "policies/pods.yaml" | trim | nindent 2 }}
  {{- end }}
  {{- with $policy.variables }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
validations:
  {{- toYaml $policy.validations | nindent 2 }}
{{- end -}}

{{/* The kinds that a policy is about, as rules of admission; pods only as they are made, so that those that are there can still be changed. */}}
{{- define "platform.rules" -}}
{{- if hasPrefix "pods" . -}}
- {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}
- {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments, statefulsets, daemonsets]}
- {apiGroups: [batch], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [jobs, cronjobs]}
- {apiGroups: [leaderworkerset.x-k8s.io], apiVersions: ["*"], operations: [CREATE, UPDATE], resources: [leaderworkersets]}
- {apiGroups: [jobset.x-k8s.io], apiVersions: ["*"], operations: [CREATE, UPDATE], resources: [jobsets]}
{{- end -}}
{{- if hasSuffix "claims" . }}
- {apiGroups: [resource.k8s.io], apiVersions: [v1, v1beta2], operations: [CREATE, UPDATE], resources: [resourceclaims, resourceclaimtemplates]}
{{- end -}}
{{- if eq "network" . -}}
- {apiGroups: [networking.k8s.io], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [networkpolicies]}
{{- end -}}
{{- end -}}

{{/* The same, as Gatekeeper says it. */}}
{{- define "platform.kinds" -}}
{{- if hasPrefix "pods" . -}}
- {apiGroups: [""], kinds: [Pod]}
- {apiGroups: [apps], kinds: [Deployment, StatefulSet, DaemonSet]}
- {apiGroups: [batch], kinds: [Job, CronJob]}
- {apiGroups: [leaderworkerset.x-k8s.io], kinds: [LeaderWorkerSet]}
- {apiGroups: [jobset.x-k8s.io], kinds: [JobSet]}
{{- end -}}
{{- if hasSuffix "claims" . }}
- {apiGroups: [resource.k8s.io], kinds: [ResourceClaim, ResourceClaimTemplate]}
{{- end -}}
{{- if eq "network" . -}}
- {apiGroups: [networking.k8s.io], kinds: [NetworkPolicy]}
{{- end -}}
{{- end -}}

{{- define "platform.policyNamespaces" -}}
{{- include "platform.namespaces" (dict "root" . "namespaces" .Values.policies.namespaces) -}}
{{- end -}}

{{- define "platform.actions" -}}
{{- ternary (list "Deny") (list "Warn" "Audit") .Values.policies.enforce | toJson -}}
{{- end -}}
