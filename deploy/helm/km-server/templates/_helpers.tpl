{{- define "km.labels" -}}
app.kubernetes.io/name: km-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
