{{/*
Is a switch on? Takes the root, the switch, and a kind as group/version/Kind. true and false are
what they say; auto is on where the cluster knows the kind, and so off where none is asked, as in
`helm template` without --api-versions.
*/}}
{{- define "headrace.isOn" -}}
{{- if kindIs "bool" .switch -}}
{{- if .switch -}}true{{- end -}}
{{- else if .root.Capabilities.APIVersions.Has .kind -}}true{{- end -}}
{{- end -}}
